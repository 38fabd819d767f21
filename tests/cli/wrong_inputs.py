"""A folder in which everything that can be wrong is wrong: inputs of the command lines in tests/golden/errors.txt."""

import json
import shutil
from pathlib import Path

from looplm.config.load import override, to_json
from looplm.config.schema import Run

GOLDEN = Path(__file__).parents[1] / "golden"
READS_JSON = "from pathlib import Path\nfrom looplm.config.load import from_json\n\n\ndef config():\n"
CONFIGS = {
    "config.py": READS_JSON + "    return from_json(Path(__file__).with_suffix('.json'))\n",
    "syntax.py": "def config(:\n",
    "no_function.py": "run = 3\n",
    "not_a_run.py": "def config():\n    return {'model': 3}\n",
    "raises.py": "def config():\n    steps = 0\n    return 1 / steps\n",
    "imports.py": "import looplm.config.schemas\n",
    "unknown_field.py": "from looplm.config.schema import Loop\n\n\ndef config():\n    return Loop(num_loop=3)\n",
    "wrong_type.py": "from looplm.config.schema import Loop\n\n\ndef config():\n    return Loop(num_loops='many')\n",
    "missing_field.py": "from looplm.config.schema import Optim\n\n\ndef config():\n    return Optim()\n",
}


def make_wrong_inputs(folder: Path, data: Path, run: Path, config: Run) -> None:
    """data: with `train` and `validation`; run: a finished run of `config`. Both are copied."""
    shutil.copytree(data, folder / "data")
    shutil.copytree(run, folder / "run")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    local = override(config, {"data.train": "data/train", "data.validation": "data/validation"})
    (folder / "config.json").write_text(to_json(local))
    (folder / "run" / "config.json").write_text(to_json(local))
    for name in ("empty", "folder.py", "texts"):
        (folder / name).mkdir()
    (folder / "file").touch()
    (folder / "garbage.model").write_bytes(b"no tokenizer")
    (folder / "texts" / "a.txt").write_text("a few words\n" * 20)
    make_datasets(folder / "dataset", folder / "data")
    make_runs(folder)
    (folder / "unknown_official").mkdir()
    official = json.loads((GOLDEN / "ouro_a" / "config.json").read_text()) | {"surprise": 1, "wonder": 2}
    (folder / "unknown_official" / "config.json").write_text(json.dumps(official))


def make_datasets(folder: Path, data: Path) -> None:
    def copy(name: str, part: str = "train") -> Path:
        return Path(shutil.copytree(data / part, folder / name))

    (copy("broken_manifest") / "manifest.json").write_text('{"format": ')
    manifest = copy("other_format") / "manifest.json"
    content = json.loads(manifest.read_text())
    (version,) = (key for key in content if "format" in key)
    manifest.write_text(json.dumps(content | {version: 99}))
    next(copy("missing_shard").glob("tokens*")).unlink()
    shard = next(copy("short_shard").glob("tokens*"))
    shard.write_bytes(shard.read_bytes()[:-2])
    manifest = copy("edited_manifest", "validation") / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"tokenizer_fingerprint": "0" * 64}))


def make_runs(folder: Path) -> None:
    """Run directories without weights, but for the one that has nothing else."""
    stored = (folder / "run" / "config.json").read_text()
    metrics = (folder / "run" / "metrics.jsonl").read_text()

    def make(name: str, **files: str) -> None:
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file.replace("_", ".")).write_text(content)

    (folder / "without_config" / "checkpoints" / "3").mkdir(parents=True)
    make("without_checkpoints", config_json=stored)
    shutil.copy(folder / "data" / "train" / "tokenizer.model", folder / "without_checkpoints")
    make("without_metrics", config_json=stored, metrics_jsonl="")
    make("broken_config", config_json=stored[:-20])
    make("unknown_key", config_json=stored.replace('"num_steps"', '"num_stepps"'))
    make("broken_metrics", config_json=stored, metrics_jsonl='{"step": 1,\n' + metrics)
    make("broken_events", events_jsonl="[1, 2]\n")
    make("broken_sweep", config_json=stored, metrics_jsonl=metrics)
    (folder / "broken_sweep" / "eval").mkdir()
    (folder / "broken_sweep" / "eval" / "depth_sweep-3.json").write_text('{"step": 3}')
