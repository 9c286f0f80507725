"""Fixtures that several directories share, and settings that make JAX compile faster."""

import gc
import importlib.util
import io
import os
from pathlib import Path

from tests import quick_xla  # noqa: F401

# Compiled programs are kept, also those of scripts that tests start; there are thousands of small ones.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import hypothesis
import pytest

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("jaxrl_lm", deadline=None)
hypothesis.settings.load_profile("jaxrl_lm")

# Tracing makes so many objects that collecting garbage took a tenth of the time of the tests of learners.
gc.set_threshold(20_000, 20, 50)

# While jaxtyping's hook loads a module of the package, what that imports for the first time is compiled from source.
for name in (
    "flax.linen",
    "gymnax",
    "matplotlib.figure",
    "orbax.checkpoint",
    "scipy.stats",
    "torch",
    "transformers.modeling_rope_utils",
):
    if importlib.util.find_spec(name.partition(".")[0]) is not None:
        importlib.import_module(name)

from tests import one_context  # noqa: F401

# The package itself is imported inside the fixtures: jaxtyping's hook must come before it.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py" and "experiments" not in item.path.parts)


@pytest.fixture(autouse=True, scope="module")
def _bounded_number_of_programs():
    """Every compiled program maps memory, and a process that reaches Linux's limit of 65,530 maps dies of it."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
        import jax

        jax.clear_caches()
        gc.collect()


_PICTURES: dict[tuple, bytes] = {}


@pytest.fixture(scope="module")
def pictures_drawn_once():
    """Runs with the same metrics share their pictures, which take longer to draw than to train; `storage` draws all."""
    from matplotlib.figure import Figure

    draw = Figure.savefig

    def draw_once(figure, target, **options):
        panels = [(axes.get_title(), axes.get_xlabel(), len(axes.lines)) for axes in figure.axes]
        key = (figure.get_suptitle(), *panels, *options.items())
        if key not in _PICTURES:
            picture = io.BytesIO()
            draw(figure, picture, **options)
            _PICTURES[key] = picture.getvalue()
        if isinstance(target, io.IOBase):
            target.write(_PICTURES[key])
        else:
            Path(target).write_bytes(_PICTURES[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", draw_once)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with checkpoints and data sets that others made."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("shared/data is not next to the checkout")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct."""
    named = os.environ.get("JAXRL_LM_SMOLLM2")
    if not named:
        pytest.skip("JAXRL_LM_SMOLLM2 does not name a folder with SmolLM2-135M-Instruct")
    folder = Path(named).expanduser()
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the folder that JAXRL_LM_SMOLLM2 names holds no model.safetensors")
    return folder


@pytest.fixture(scope="session")
def libtpu() -> str:
    """A folder with the package libtpu, which compiles for TPUs."""
    folder = os.environ.get("JAXRL_LM_LIBTPU", "")
    if not (Path(folder) / "libtpu").is_dir():
        pytest.skip("JAXRL_LM_LIBTPU does not name a folder with the package libtpu")
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2():
    """A random GPT-2 of two layers: (model, params)."""
    from tests.models import tiny

    return tiny.random_model("gpt2")


@pytest.fixture(scope="session")
def tiny_llama():
    """A random Llama of two layers with grouped heads: (model, params)."""
    from tests.models import tiny

    return tiny.random_model("llama", num_key_value_heads=2)


@pytest.fixture
def as_users_call():
    """The package as users have it: without jaxtyping's hook, which refuses arguments before the package can."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
