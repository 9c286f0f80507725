"""Plans: slices, counts of operations and traffic, and verdicts that agree with the compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxrl_lm.cli.plan import run_plan
from jaxrl_lm.core.flops import count_flops
from jaxrl_lm.distributed import MeshConfig, make_mesh
from jaxrl_lm.errors import InputError
from jaxrl_lm.models import model_from_config, param_shapes
from jaxrl_lm.training.planning.collectives import collective_bytes
from jaxrl_lm.training.planning.config import PlanConfig
from jaxrl_lm.training.planning.plan import PRESETS, Plan, ProgramPlan, _check, advice, find_model
from jaxrl_lm.training.planning.programs import plan_run
from jaxrl_lm.training.planning.slices import GENERATIONS, find_slice, slices_of

NUM_PARAMS = {  # as on the models' cards, in millions
    "gpt2": 124,
    "smollm2-135m": 135,
    "qwen3-0.6b": 596,
    "qwen3-4b": 4022,
    "llama-3-8b": 8030,
    "llama-3-70b": 70554,
}


@pytest.mark.parametrize(
    ("name", "chips", "devices", "topology"),
    [
        ("v5e-1", 1, 1, "1x1"),
        ("v5e-8", 8, 8, "2x4"),
        ("v5e-256", 256, 256, "16x16"),
        ("v6e-16", 16, 16, "4x4"),
        ("v4-8", 4, 4, "2x2x1"),
        ("v5p-32", 16, 16, "2x2x4"),
        ("tpu7x-16", 8, 16, "2x2x2"),
    ],
)
def test_names_of_slices_count_chips_or_cores_as_googles_do(name, chips, devices, topology):
    found = find_slice(name)
    assert (found.num_chips, found.num_devices, found.topology) == (chips, devices, topology)


@pytest.mark.parametrize("name", ["v5e-3", "v7-8", "v5e", "a100-8", ""])
def test_an_unknown_slice_is_refused_with_the_known_ones(name):
    with pytest.raises(
        InputError, match=r"is not known; known slices are v4: v4-8, .*v5e: v5e-1, v5e-4, .*tpu7x: tpu7x-8"
    ):
        find_slice(name)


def test_slices_of_a_generation_grow():
    for generation in GENERATIONS:
        sizes = [each.num_chips for each in slices_of(generation)]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_presets_have_the_parameters_of_their_models(name):
    shapes = param_shapes(model_from_config(find_model(name)))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6) == NUM_PARAMS[name]
    assert {path.name for path in PRESETS.iterdir()} == set(NUM_PARAMS)


def test_products_are_counted_with_the_trips_of_their_loops():
    x, w = jnp.ones((3, 4)), jnp.ones((5, 4, 4))

    def program(x, w):
        y, _ = jax.lax.scan(lambda x, w: (jax.checkpoint(lambda x: x @ w)(x), None), x, w)
        y = jax.lax.while_loop(lambda y: jnp.sum(y) > 0, lambda y: y @ w[0], y)
        return jnp.sum(jax.jit(jnp.dot)(y, w[0]))

    one = 2 * 3 * 4 * 4
    assert count_flops(jax.make_jaxpr(program)(x, w), while_trips=7) == (5 + 7 + 1) * one
    grads = jax.make_jaxpr(jax.grad(lambda w: jnp.sum(jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0])))(w)
    assert count_flops(grads) == 3 * 5 * one


HLO = """
HloModule jit_f, is_scheduled=true

%region_1.2 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %add = f32[] add(%a, %a)
}

%compare_fusion (p: s32[]) -> pred[] {
  %p = s32[] parameter(0)
  %constant.3 = s32[]{:T(128)} constant(30)
  ROOT %lt = pred[] compare(%p, %constant.3), direction=LT
}

%cond (t: (s32[], bf16[2,8])) -> pred[] {
  %t = (s32[], bf16[2,8]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %fusion = pred[] fusion(%i), kind=kLoop, calls=%compare_fusion
}

%body (t.1: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %t.1 = (s32[], bf16[2,8]) parameter(0)
  %x = bf16[2,8]{1,0} get-tuple-element(%t.1), index=1
  %all-gather.1 = bf16[8,8]{1,0:T(8,128)} all-gather(%x), channel_id=1, dimensions={0}
  ROOT %tuple = (s32[], bf16[2,8]) tuple(%i, %x)
}

ENTRY %main (x.1: bf16[2,8]) -> f32[4] {
  %x.1 = bf16[2,8]{1,0} parameter(0)
  %while.1 = (s32[], bf16[2,8]) while(%x.1), condition=%cond, body=%body
  %start = f32[4]{0} all-reduce-start(%y), to_apply=%region_1.2
  ROOT %done = f32[4]{0} all-reduce-done(%start)
  %both = (f32[64,64]{1,0}, bf16[3]{0}) all-reduce(%y, %z), replica_groups={{0,1}}, to_apply=%region_1.2
  %part = f32[5]{0} reduce-scatter(%y), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%region_1.2
  %part.1 = f32[5]{0} reduce-scatter(%y), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%region_1.2
  %gathers = ((f32[2], f32[3]), (f32[8], f32[12])) all-gather-start(%y, %z), dimensions={0}
  %moved = (f32[7]{0}, f32[7]{0}, u32[], u32[]) collective-permute-start(%y), source_target_pairs={{0,1}}
}
"""


def test_collectives_are_counted_with_the_trips_that_a_loops_condition_allows():
    assert collective_bytes(HLO) == {
        "all-gather": 30 * 8 * 8 * 2 + (8 + 12) * 4,
        "all-reduce": 4 * 4 + 64 * 64 * 4 + 3 * 2,
        "reduce-scatter": 5 * 4 * (4 + 2),
        "collective-permute": 7 * 4,
    }


def plan_of(peak: float, temporary: float) -> Plan:
    program = ProgramPlan(
        peak_bytes=peak,
        temporary_bytes=temporary,
        flops=1.0,
        collective_bytes={},
        compute_seconds=1.0,
        memory_seconds=1.0,
        network_seconds=1.0,
        compile_seconds=1.0,
    )
    return Plan(
        slice="v5e-4",
        num_chips=4,
        mesh={"data": 2, "fsdp": 2, "tensor": 1},
        platform="tpu",
        device_bytes=16e9,
        parts={"weights": peak - temporary},
        programs={"update": program},
    )


def test_what_does_not_fit_is_told_what_to_change():
    config = PlanConfig(model="m", remat="none", dtype="float32")
    assert advice(config, plan_of(15e9, 5e9)) == []
    lines = "\n".join(advice(config, plan_of(40e9, 30e9)))
    for part in (
        "--remat full",
        "--dtype bfloat16",
        "--micro-batch-size 32",
        "--batch-size 32",
        "--mesh.data 1",
        "16 chips",
    ):
        assert part in lines
    assert "--remat" not in "\n".join(advice(config, plan_of(40e9, 1e9)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "sft", "reward_model": True}, "reward_model: sft has none"),
        ({"algorithm": "dpo", "micro_batch_size": 4}, "micro_batch_size=4: dpo accumulates whole batches"),
        ({"micro_batch_size": 3}, "micro_batch_size=3 does not divide the 64 completions"),
        ({"algorithm": "rloo", "critic": "model"}, "rloo has no value function"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"group_size": 2}, "group_size=2: ppo has no groups"),
        ({"algorithm": "rloo", "group_size": 0}, "group_size=0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        PlanConfig(model="m", **settings)


def run_python(*args: str, tmp_path: Path, libtpu: str | None = None) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": os.pathsep.join(filter(None, [libtpu, str(Path.cwd()), os.environ.get("PYTHONPATH")]))}
    return subprocess.run(
        [sys.executable, *args],
        env=os.environ | path | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def small_model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((PRESETS / "llama-3-8b" / "config.json").read_text())
    config |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 1024}))
    return str(folder)


def test_without_libtpu_a_plan_is_made_for_virtual_devices(tmp_path):
    options = ["--model", small_model(tmp_path), "--slice", "v5e-4", "--algorithm", "sft", "--batch-size", "8"]
    command = ["-m", "jaxrl_lm.cli.main", "plan", *options, "--out", str(tmp_path / "plan.json")]
    done = run_python(*command, tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "compiled for virtual CPU devices" in done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"]
    assert plan["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    shapes = param_shapes(model_from_config(tmp_path / "model"))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # Norms are on every device.
    assert plan["parts"]["weights"] == pytest.approx(4 * num_params / 4, rel=0.01)
    assert plan["parts"]["optimizer"] == pytest.approx(2 * plan["parts"]["weights"], rel=0.01)


def test_what_a_run_would_refuse_is_refused_before_compiling(tmp_path):
    config = PlanConfig(model=small_model(tmp_path), prompt_tokens=8000, new_tokens=500)
    with pytest.raises(InputError, match=r"prompt_tokens=8000 and new_tokens=500 exceed the model's context of 8192"):
        _check(config, tmp_path / "model")
    with pytest.raises(InputError, match=r"out='.*missing/plan.json': there is no folder '.*missing'; make it first"):
        run_plan(PlanConfig(model="gpt2", out=str(tmp_path / "missing" / "plan.json")))


def test_a_reward_model_can_be_an_encoder(tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    content = {"model_type": "bert", "intermediate_size": 16, "max_position_embeddings": 16, **sizes}
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(content))
    config = PlanConfig(
        model="bert", algorithm="reward-model", batch_size=2, prompt_tokens=4, new_tokens=4, dtype="float32"
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    update = plan_run(config, tmp_path / "bert", mesh).programs["update"]
    assert count_flops(update.function.trace(*update.args).jaxpr) > 0


PLANS = """
import json, sys
from dataclasses import asdict
from jaxrl_lm.training.planning.config import PlanConfig
from jaxrl_lm.training.planning.plan import make_plan, use_described_devices

platform = use_described_devices(8)
plans = []
for name in sys.argv[2:]:
    algorithm = "rloo" if name == "v5e-4" else "sft"  # which generates as well
    config = PlanConfig(
        model=sys.argv[1], slice=name, algorithm=algorithm, batch_size=8, prompt_tokens=64, new_tokens=64
    )
    plans.append(asdict(make_plan(config, platform)))
print(json.dumps(plans))
"""


def test_every_generation_compiles(libtpu, tmp_path):
    names = ["v4-8", "v5e-4", "v5p-8", "v6e-4", "tpu7x-8"]
    done = run_python("-c", PLANS, small_model(tmp_path), *names, tmp_path=tmp_path, libtpu=libtpu)
    assert done.returncode == 0, done.stderr
    plans = json.loads(done.stdout.splitlines()[-1])
    forward = 2 * 3.4e6 * 8 * 128  # parameters of the blocks and the unembedding, times tokens
    for name, plan in zip(names, plans, strict=True):
        assert (plan["slice"], plan["platform"]) == (name, "tpu")
        update = plan["programs"]["update"]
        assert update["peak_bytes"] > sum(plan["parts"].values())
        assert update["collective_bytes"]["all-gather"] > 0
        assert 3 * forward < update["flops"] < 12 * forward
