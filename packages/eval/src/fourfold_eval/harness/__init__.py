"""lm-evaluation-harness 0.4.13: its tasks build the prompts and score the answers, our client does the asking.

Runs in the eval environment alone; nothing here is imported by the command line.
"""
