"""Requests for weights and what follows from them: rules, layouts, decisions, rows of reports.

Core ML and torch share it. It knows deployment targets and the forms that each can express, but
neither models nor torch.
"""
