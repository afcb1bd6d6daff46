"""The command line: one module a command, no logic.

Command modules import what they need inside the command, so that ``--help`` answers at once.
"""
