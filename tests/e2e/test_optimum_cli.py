"""``optimum-cli export toprl`` as Optimum's own program runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoProcessor

from tests.support.tiny_llava import IMAGE_PIXELS, VISUAL_TOKENS, tiny_network
from toprl_export.bundle import load_bundle
from toprl_export.models.mini.processor import mini_processor
from toprl_export.optimum import TOPRLModelForImageTextToText

pytest.importorskip("optimum.commands.optimum_cli", reason="needs the extra toprl-export[optimum]")


def optimum(*arguments: str | Path, expect: int = 0) -> str:
    """What it prints: on standard output, or where it fails on standard error."""
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "toprl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout if expect == 0 else done.stderr


@pytest.mark.slow
def test_it_builds_a_bundle_that_answers_as_the_checkpoint_does(tmp_path: Path):
    checkpoint = tmp_path / "checkpoint"
    tiny_network(layers=1).save_pretrained(checkpoint)
    mini_processor(IMAGE_PIXELS, patch_size=8).save_pretrained(checkpoint)
    flags = ("--model", checkpoint, "--baseline", "fastv-p", "--stage-layers", "0", "--budget-kept", "12,6")
    said = optimum(*flags, "--quiet", tmp_path / "bundle")
    assert f"bundle: {tmp_path / 'bundle'}" in said and "budgets kept 12, 6 of 25" in said
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.build_command.startswith("optimum_cli.py export toprl --model ")
    assert (manifest.baseline, manifest.budgets_kept) == ("fastv-p", (12, 6))
    processor = AutoProcessor.from_pretrained(tmp_path / "bundle" / "processor", backend="pil")
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what colour is the 7?"}]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    expected = tiny_network(layers=1).eval().generate(**inputs, max_new_tokens=20, do_sample=False)
    with TOPRLModelForImageTextToText.from_pretrained(tmp_path / "bundle", budget_kept=VISUAL_TOKENS) as model:
        assert model.generate(**inputs, max_new_tokens=20).tolist() == expected.tolist()
        assert model.generate(**inputs, max_new_tokens=20, budget_kept=6).tolist() != expected.tolist()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--baseline", "fastv", "--budget-kept", "0"), "error: --budget-kept: 0 is too small"),
        (("--baseline", "fastv", "one", "--output-dir", "two"), "one and --output-dir are both given"),
        (("--baseline", "fastv", "--no-such-flag"), "error: unrecognized arguments: --no-such-flag"),
    ],
)
def test_mistakes_are_told_in_one_line_with_exit_code_2(arguments: tuple[str, ...], expected: str):
    last = optimum(*arguments, "--dry-run", expect=2).strip().splitlines()[-1]
    assert expected in last and "error: " in last


def test_optimums_other_commands_do_not_pay_for_ours():
    script = (
        "import sys\nfrom optimum.commands.optimum_cli import main\nsys.argv = ['optimum-cli', 'export', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'transformers', 'numpy', 'onnxruntime'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "toprl" in shown and shown.endswith("set()\n")
