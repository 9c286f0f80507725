"""`jaxrl-lm COMMAND`: every option is a field of a frozen dataclass, documented there.

Exit codes: 0 done; 1 a run diverged or failed; 2 an input is not what it must be; 128 + signal when told to stop.
"""

import signal
import sys
from collections.abc import Callable
from typing import Any

import tyro

from jaxrl_lm.cli.config_file import expand_config_file
from jaxrl_lm.cli.demo import DemoConfig, run_demo
from jaxrl_lm.cli.doctor import DoctorConfig, run_doctor
from jaxrl_lm.cli.environment import EvaluateConfig, ReportConfig, parse_train, run_evaluate, run_report
from jaxrl_lm.cli.extras import needing
from jaxrl_lm.cli.language import GenerateConfig, run_generate, run_offline, run_online
from jaxrl_lm.cli.reward import run_reward_model
from jaxrl_lm.cli.rlhf import run_chain
from jaxrl_lm.errors import InputError
from jaxrl_lm.storage import visible_text
from jaxrl_lm.training.offline.train import OFFLINE
from jaxrl_lm.training.online.train import ONLINE
from jaxrl_lm.training.reward_model.config import RewardModelRunConfig
from jaxrl_lm.training.rlhf.config import RLHFConfig
from jaxrl_lm.training.run import Interrupted, RunFailedError

COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    **{name: (kind, run_offline) for name, (kind, _) in OFFLINE.items()},
    "reward-model": (RewardModelRunConfig, run_reward_model),
    **{name: (kind, run_online) for name, (kind, _) in ONLINE.items()},
    "rlhf": (RLHFConfig, run_chain),
    "generate": (GenerateConfig, run_generate),
    "evaluate": (EvaluateConfig, run_evaluate),
    "report": (ReportConfig, run_report),
    "demo": (DemoConfig, run_demo),
    "doctor": (DoctorConfig, run_doctor),
}


def _parse_label(args: list[str]) -> Callable[[], None]:
    with needing("label", "label"):
        from jaxrl_lm.cli.label import parse_label
    return parse_label(args)


GROUPS: dict[str, Callable[[list[str]], Callable[[], None]]] = {"train": parse_train, "label": _parse_label}
"""Commands with commands of their own: arguments to what they ask for."""


def main(args: list[str] | None = None) -> None:
    """Run a command, and exit with its code."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: list[str]) -> int:
    """Run a command and return its exit code; errors that a user can mend are printed without a traceback."""
    try:
        if args and args[0] in GROUPS:
            GROUPS[args[0]](args[1:])()
            return 0
        config = parse(expand_config_file(args))
        command = next(call for kind, call in COMMANDS.values() if isinstance(config, kind))
        command(config)
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


def parse(args: list[str]) -> Any:
    """The configuration that a command line asks for; prints help or the mistake and exits where there is one."""
    return tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in COMMANDS.items()},
        args=args,
        prog="jaxrl-lm",
        description="PPO and Q-learning in pure JAX, for environments and for language models. "
        "jaxrl-lm train {ppo,...} trains in environments; "
        "jaxrl-lm label serves a page on which people judge answers, and label {export,import,stats} its labels. "
        "Every command also takes --config FILE.yaml with the same names.",
    )


def _fail(error: Exception, code: int) -> int:
    print(f"jaxrl-lm: {visible_text(str(error))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
