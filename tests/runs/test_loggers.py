"""metrics.csv over a break, and what W&B keeps of a run without a key."""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from runs.loggers import MetricsCSV, wandb_logger
from tests.toy.running import train_toy


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_resumed_file_drops_what_came_after_the_checkpoint(tmp_path):
    broken = MetricsCSV(str(tmp_path))
    for step in range(4):
        broken.log_metrics({"loss": step / 10}, step)
    broken.save()
    resumed = MetricsCSV(str(tmp_path))
    resumed.log_metrics({"loss": 9.0, "accuracy": 0.5}, 2)
    resumed.save()
    assert [(row["step"], row["loss"], row["accuracy"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("0", "0.0", ""),
        ("1", "0.1", ""),
        ("2", "9.0", "0.5"),
    ]


@pytest.fixture
def no_wandb_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def test_without_a_key_wandb_is_offline_and_keeps_config_tags_group_figures_and_table(no_wandb_key, tmp_path):
    run_dir = tmp_path / "run"
    train_toy(run_dir, "logger=wandb", "tags=[first_try]", "group=a_sweep")
    for stage in ("first", "second"):
        (offline,) = (run_dir / stage / "wandb").glob("offline-run-*")
        run_id = (run_dir / stage / "wandb_run_id").read_text()
        assert offline.name.endswith(run_id)
        kept = read_offline_run(next(offline.glob("*.wandb")))
        assert kept["run"].tags == ["first_try"]
        assert kept["run"].run_group == "a_sweep"
        assert kept["config"]["model.optimizer.lr"] == (0.01 if stage == "first" else 0.001)
        assert {"val/accuracy", "test/accuracy"} <= kept["history"]
        assert list((offline / "files" / "media" / "images" / "figures").glob("test_weights*.png"))
        (table,) = (offline / "files" / "media" / "table").glob("result*.json")
        table = json.loads(table.read_text())
        assert table["columns"] == ["metric", "this run", "floor", "paper"]
        assert table["data"][0][0] == "test/accuracy" and table["data"][0][3] == 0.95


def test_a_resumed_stage_goes_on_in_the_same_wandb_run(no_wandb_key, tmp_path):
    ids = []
    for _ in range(2):
        logger = wandb_logger(str(tmp_path), "p", None, "n", [], None, "offline")
        ids.append(logger.experiment.id)
        logger.experiment.finish()
    assert ids[0] == ids[1]


def test_a_key_makes_wandb_go_online(no_wandb_key, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    logger = wandb_logger(str(tmp_path), "p", None, "n", [], None, None)
    assert logger._wandb_init["mode"] == "online"


def read_offline_run(path: Path) -> dict:
    """The records of an offline run's file: protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    kept: dict = {"config": {}, "history": set()}
    for data in leveldb_records(path.read_bytes()[7:]):  # after W&B's own header
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            kept["run"] = record.run
            kept["config"].update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        kept["config"].update({item.key: json.loads(item.value_json) for item in record.config.update})
        kept["history"].update(item.key or "/".join(item.nested_key) for item in record.history.item)
    return kept


def leveldb_records(log: bytes, block: int = 32768) -> Iterator[bytes]:
    """Records of a LevelDB log: fragments with a 7-byte header (checksum, length, type) in blocks."""
    place, parts = 7, b""  # W&B counts its header into the first block
    log = b"\0" * 7 + log
    while place + 7 <= len(log):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", log, place + 4)
        parts += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""
