"""Workers: the same files for any number of them, a lost one costs its batch only, and a refusal is told."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from comfy_moss import cli
from comfy_moss.benchmarks import workers
from comfy_moss.benchmarks.studio import read_note
from comfy_moss.benchmarks.workers import Batches, Workers

OPTIONS = (
    "--pixels",
    "0.06M",
    "--methods",
    "dense,draft-3,moss3",
    "--batch",
    "1",
    "--device",
    "cpu",
    "--precision",
    "fp32",
)


@pytest.fixture
def command(model_dir: Path) -> list[str]:
    """An evaluation of a tiny random model: six prompts in six batches."""
    return ["evaluate", "--model", str(model_dir), "--per-task", "1", *OPTIONS]


def _load(asked: Path) -> Path:
    (asked / f"loaded by {os.getpid()}").touch()
    return asked


def _draw(folder: Path, batch: int) -> dict[Path, bytes]:
    if batch < 0:
        raise ValueError(f"batch {batch} is impossible")
    return {folder / f"{batch}.txt": str(batch * batch).encode()}


def _files(folder: Path, count: int) -> dict[int, Path]:
    return {n: folder / f"{n}.txt" for n in range(count)}


# --- processes of this machine ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_every_batch_is_drawn_once_and_each_process_loads_once(tmp_path: Path, count: int) -> None:
    with Batches(Workers(count), tmp_path, _load, _draw) as batches:
        batches.run(_files(tmp_path, 5))
        batches.run(_files(tmp_path, 9))
    assert [path.read_text() for path in _files(tmp_path, 9).values()] == [str(n * n) for n in range(9)]
    loaded = [path.name for path in tmp_path.glob("loaded*")]
    assert 1 <= len(loaded) <= count and (f"loaded by {os.getpid()}" in loaded) == (count == 1)


def test_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("mine")
    with Batches(Workers(1), tmp_path, _load, _draw) as batches:
        batches.run(_files(tmp_path, 3))
    assert (tmp_path / "1.txt").read_text() == "mine" and (tmp_path / "2.txt").read_text() == "4"


@pytest.mark.parametrize("count", [1, 2])
def test_a_refused_batch_is_told_and_the_others_are_kept(tmp_path: Path, count: int) -> None:
    files = {0: tmp_path / "0.txt", -1: tmp_path / "-1.txt"}
    with (
        pytest.raises(ValueError, match="batch -1 is impossible"),
        Batches(Workers(count), tmp_path, _load, _draw) as batches,
    ):
        batches.run(files)
    assert (tmp_path / "0.txt").exists() or count == 2


def _suicide(folder: Path, batch: int) -> dict[Path, bytes]:
    """A worker that dies when it meets a batch the first time."""
    if not (mark := folder / f"met {batch}").exists():
        mark.touch()
        if batch == 2:
            os._exit(9)
    return _draw(folder, batch)


def _always(_folder: Path, _batch: int) -> dict[Path, bytes]:
    os._exit(9)


def test_a_killed_worker_loses_its_batch_which_is_drawn_again(tmp_path: Path) -> None:
    with Batches(Workers(2), tmp_path, _load, _suicide) as batches:
        batches.run(_files(tmp_path, 6))
    assert [path.read_text() for path in _files(tmp_path, 6).values()] == [str(n * n) for n in range(6)]


def test_workers_that_die_on_every_batch_are_told_in_one_sentence(tmp_path: Path) -> None:
    batches = Batches(Workers(2), tmp_path, _load, _always)
    with pytest.raises(ValueError, match="workers were lost twice before"), batches:
        batches.run(_files(tmp_path, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, None, 0.0), "--workers must be 1 or more"),
        ((1, None, 0.5), "--gpus"),
        ((1, None, -1.0), "--gpus"),
    ],
)
def test_impossible_workers_are_refused(settings: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workers(*settings)


def test_without_ray_a_cluster_is_refused_in_one_sentence(
    command: list[str], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        assert cli.main([*command, "--cluster", "auto", "--out", str(tmp_path)]) == 2
        assert "pip install ray" in capsys.readouterr().err
    else:
        pytest.skip("Ray is installed")


# --- an evaluation, and a worker killed in the middle -------------------------------------------------------


def _rows(folder: Path) -> dict[str, list[dict]]:
    """Rows by file, without times."""
    timed = ("draw_s", "decode_s")
    return {
        path.name: [
            {k: v for k, v in json.loads(line).items() if k not in timed}
            for line in path.read_text().splitlines()
        ]
        for path in sorted((folder / "rows").iterdir())
    }


def _kill_one(folder: Path, named: str, killed: list[int]) -> None:
    """Wait for the first batch, then kill one of our own worker processes."""
    limit = time.monotonic() + 600
    while time.monotonic() < limit and not killed:
        if any((folder / "rows").glob("*.jsonl")):
            for process in _children(named)[:1]:
                process.kill()
                killed.append(process.pid)
        time.sleep(0.02)


def _children(named: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(named in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _evaluated(command: Sequence[str], folder: Path, named: str = "") -> list[int]:
    """Run it, kill a process of that name on the way, and say which."""
    killed: list[int] = []
    thread = threading.Thread(target=_kill_one, args=(folder, named, killed), daemon=True)
    if named:
        thread.start()
    assert cli.main([*command, "--out", str(folder)]) == 0
    if named:
        thread.join(1)
    return killed


def test_two_processes_one_of_them_killed_draw_the_rows_of_one(command: list[str], tmp_path: Path) -> None:
    _evaluated([*command, "--workers", "1"], tmp_path / "one")
    killed = _evaluated([*command, "--workers", "2"], tmp_path / "two", "LokyProcess")
    assert killed and not psutil.pid_exists(killed[0])
    assert _rows(tmp_path / "two") == _rows(tmp_path / "one") and len(_rows(tmp_path / "one")) == 6


@pytest.fixture
def cluster() -> Iterator[str]:
    """A Ray of two workers on this machine."""
    ray = pytest.importorskip(
        "ray", reason="Ray is not installed: the cluster was NOT tested (pip install ray)"
    )
    ray.init(num_cpus=2, runtime_env=workers.environment(), include_dashboard=False, log_to_driver=False)
    yield "local"
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_cluster_of_two_workers_one_of_them_killed_draws_the_rows_of_one(
    command: list[str], tmp_path: Path, cluster: str
) -> None:
    _evaluated([*command, "--workers", "1"], tmp_path / "one")
    killed = _evaluated(
        [*command, "--cluster", cluster, "--workers", "2"], tmp_path / "two", "ray::PoolActor"
    )
    assert killed and not psutil.pid_exists(killed[0])
    assert _rows(tmp_path / "two") == _rows(tmp_path / "one") and len(_rows(tmp_path / "one")) == 6
    assert read_note(tmp_path / "two" / "run.json")["cluster"] is True


def test_usually_there_are_as_many_workers_as_threads_batches_and_reason_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers.torch, "get_num_threads", lambda: 8)
    cpu, gpu = workers.torch.device("cpu"), workers.torch.device("cuda")
    asked = type("Asked", (), {"workers": None, "cluster": None, "gpus": 0.0})
    assert [Workers.of(asked, *of).count for of in ((cpu, 100), (cpu, 3), (gpu, 100))] == [4, 3, 1]
