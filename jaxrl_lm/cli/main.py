"""`jaxrl-lm COMMAND`: every option is a field of a frozen dataclass, documented there.

Exit codes: 0 done; 1 a run diverged or failed; 2 an input is invalid; 128 + signal when a signal stopped it.
"""

import signal
import sys
from typing import Any

from jaxrl_lm.cli import commands
from jaxrl_lm.cli.commands import COMMANDS
from jaxrl_lm.distributed.config import HostsConfig
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage.visible import visible_text
from jaxrl_lm.training.errors import Interrupted, RunFailedError

_HELP = ("-h", "--help")


def main(args: list[str] | None = None) -> None:
    """Run a command, and exit with its code."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: list[str]) -> int:
    """Run a command and return its exit code; errors of the user's input are printed without a traceback."""
    try:
        if not args or args[0] in _HELP:
            sys.stdout.write(commands.overview())
        elif args[1:] and args[1] in _HELP and commands.list_commands(args[0]):
            sys.stdout.write(commands.overview(args[0]))
        else:
            name, options = commands.find_command(args)
            settings = _parse(name, options)
            _join_hosts(settings)
            COMMANDS[name].load_run()(settings)
    except InputError as error:
        return _fail(error, 2)
    except RunFailedError as error:
        return _fail(error, 1)
    except Interrupted as stop:
        return _fail(stop, 128 + stop.signal_number)
    except KeyboardInterrupt:  # where nothing waits for it: while loading, or between the stages of a chain
        print("jaxrl-lm: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as done:  # the parser has printed help, or what is wrong with an option
        return done.code if isinstance(done.code, int) else 2
    return 0


def _join_hosts(settings: Any) -> None:
    """Connect the processes of a run before anything that uses a device is imported, such as gymnax."""
    config = getattr(settings, "hosts", None)
    if isinstance(config, HostsConfig) and config.coordinator is not None:
        from jaxrl_lm.distributed import hosts  # here, because it imports JAX

        hosts.start(config)


def parse(args: list[str]) -> Any:
    """The settings that a command line asks for; prints help or the mistake and exits where there is one."""
    return _parse(*commands.find_command(args))


def _parse(name: str, options: list[str]) -> Any:
    from jaxrl_lm.cli.options import parse_options  # here, so that the list of commands comes without tyro and YAML

    return parse_options(name, COMMANDS[name].load_settings(), options)


def _fail(error: Exception, code: int) -> int:
    print(f"jaxrl-lm: {visible_text(str(error))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
