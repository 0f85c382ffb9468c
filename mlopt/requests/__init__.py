"""What is asked for a weight and what follows: rules, decisions, rows of reports.

Nothing here knows of Core ML or torch.
"""
