"""The default folder of compiled programs, and what the user may say instead."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxrl_lm.training import compilation_cache
from jaxrl_lm.training.compilation_cache import use_compilation_cache

OPTIONS = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path):
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_each_kind_of_processor_has_a_folder_of_its_own(monkeypatch, tmp_path):
    folders = []
    for flags in ("flags : avx2", "flags : avx2 avx512f"):
        file = tmp_path / "cpuinfo"
        file.write_text(f"model name : any\n{flags}\n")
        monkeypatch.setattr(compilation_cache, "_CPUINFO", file)
        jax.config.update("jax_compilation_cache_dir", None)
        use_compilation_cache()
        folders.append(Path(jax.config.jax_compilation_cache_dir))
    assert folders[0] != folders[1]
    assert {folder.parent for folder in folders} == {tmp_path / "jaxrl_lm"}


def test_a_folder_of_the_users_own_is_kept(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


def test_a_second_process_compiles_nothing_again(tmp_path):
    program = (
        "import jax, jax.numpy as jnp\n"
        "from jaxrl_lm.training.compilation_cache import use_compilation_cache\n"
        "use_compilation_cache()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
        "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))\n"
        "print(sum('cache_hits' in name for name in hits))\n"
    )
    counts = [
        int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    assert counts[0] == 0
    assert counts[1] > 0
    assert any((tmp_path / "jaxrl_lm").rglob("*-cache"))
