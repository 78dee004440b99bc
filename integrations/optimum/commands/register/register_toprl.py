"""Where ``optimum-cli`` looks for commands of other packages.

It reads this folder of the namespace package ``optimum``: neither it nor the folders above may have an ``__init__.py``.
"""

from optimum.commands.export.base import ExportCommand

from toprl_export.cli.optimum_command import TOPRLExportCommand

REGISTER_COMMANDS = [(TOPRLExportCommand, ExportCommand)]
