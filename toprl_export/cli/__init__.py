"""The command line: one file per command, listed in main.py.

`command` says what every command has, `options` what several have, `output` how they print, and `engine_command_line`
what installed engines add to them.
"""
