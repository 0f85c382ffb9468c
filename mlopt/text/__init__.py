"""Text for terminals and JSON, shared by all reports and commands.

names: escapes and elision of names that come from models; words: counts, byte sizes and shares;
tables: columns of plain text; json_text: JSON, and the numbers that it does not have.
"""
