"""Batches on many processes or machines: joblib hands them out, and every batch is one file.

A batch is a pure function of what was asked and of its name, and its file is written as a whole.  So whoever
is stopped loses only the batches in hand, which are drawn again, and the same files come out for any number
of workers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import BrokenProcessPool
from tqdm import tqdm

from comfy_moss.images import write_files

from . import ROOT

Load = Callable[
    [Any], Any
]  # what was asked -> what all batches need, for example a model; every process keeps one
Draw = Callable[[Any, Any], Mapping[Path, bytes]]  # (what was loaded, a batch) -> its files


@dataclass(frozen=True)
class Workers:
    """Who draws.

    Attributes:
        count: processes; 1 = this one, where there is no cluster.  None = as many as a cluster has room for.
        cluster: address of a Ray cluster ("auto", "local", "host:port"); None = processes on this machine.
        gpus: of the cluster that each task takes; 0.5 = two tasks share one.
    """

    count: int | None = 1
    cluster: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"--workers must be 1 or more, got {self.count}")
        if self.gpus < 0 or (self.gpus and not self.cluster):
            raise ValueError(
                f"--gpus is a number of 0 or more for the tasks of a --cluster, got {self.gpus:g}"
            )
        if self.cluster:
            import_ray()

    @property
    def alone(self) -> bool:
        """Whether everything is drawn in this process."""
        return self.count == 1 and self.cluster is None

    @classmethod
    def of(cls, args: Any, device: torch.device, batches: int) -> Workers:
        """From options workers, cluster and gpus; usually one worker on a GPU, and on a CPU one a thread, up
        to four.

        Raises:
            ValueError: a value out of range, or Ray is not installed.
        """
        few = 1 if device.type != "cpu" else max(1, min(torch.get_num_threads(), batches, 4))
        return cls(args.workers if args.workers is not None or args.cluster else few, args.cluster, args.gpus)


@dataclass
class Batches:
    """Draws the batches of one task; inside its context workers stay and keep what they loaded.

    Attributes:
        asked: goes to `load`, in other processes by pickle.
        told: what the progress bar counts.
    """

    workers: Workers
    asked: Any
    load: Load
    draw: Draw
    told: str = "batches"

    def __post_init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._parallel: Parallel | None = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._close()

    @cached_property
    def loaded(self) -> Any:
        """What `load` gives, in this process."""
        return self.load(self.asked)

    def run(self, files: Mapping[Any, Path]) -> None:
        """Draw what is missing.

        Args:
            files: batch -> the file that is there when the batch is; it is one of those that `draw` gives.

        Raises:
            ValueError: a batch was refused, or workers are lost time and again.
        """
        before: list[Any] = []
        while todo := [batch for batch, path in files.items() if not path.exists()]:
            if todo == before:
                raise ValueError(
                    "workers were lost twice before they could finish a batch; what is finished is kept, so "
                    "go on with fewer --workers or a smaller --batch"
                )
            before = todo
            with tqdm(total=len(todo), desc=self.told, disable=None, leave=False) as bar:
                self._run(todo, bar)

    def _run(self, todo: Sequence[Any], bar: tqdm) -> None:
        if self.workers.alone:
            for batch in todo:
                write_files(dict(self.draw(self.loaded, batch)))
                bar.update()
            return
        pickled = pickle.dumps(self.asked)
        try:
            parallel = self._pool()
            for _ in parallel(delayed(_task)(pickled, self.load, self.draw, batch) for batch in todo):
                bar.update()
        except _lost(self.workers):
            self._close()
        except BaseException as error:
            self._close()
            if type(error).__module__.startswith("ray."):
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(f"the cluster {self.workers.cluster} cannot draw: {reason}") from error
            raise

    def _pool(self) -> Parallel:
        if self._parallel is None:
            settings = self._open.enter_context(
                _processes(self.workers) if self.workers.cluster is None else _ray(self.workers)
            )
            self._parallel = self._open.enter_context(Parallel(batch_size=1, **settings))
        return self._parallel

    def _close(self) -> None:
        self._parallel = None
        self._open.close()


def _task(pickled: bytes, load: Load, draw: Draw, batch: Any) -> None:
    """One batch in another process."""
    write_files(dict(draw(_loaded(load, pickled), batch)))


@lru_cache(maxsize=1)  # in a process that does nothing else
def _loaded(load: Load, pickled: bytes) -> Any:
    _hide_root()
    return load(pickle.loads(pickled))


def _hide_root() -> None:
    """The root was needed to find this module; left there, kernels/ would pass for the hub's package."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


# --- processes, or a cluster --------------------------------------------------------------------------------


@contextlib.contextmanager
def _processes(workers: Workers) -> Iterator[dict[str, Any]]:
    """Settings of `Parallel` inside the context.  Processes start with our sys.path, where they must find us.
    """
    threads = max(1, torch.get_num_threads() // workers.count)
    sys.path.append(str(ROOT))
    try:
        with parallel_config("loky", n_jobs=workers.count, inner_max_num_threads=threads):
            yield {"return_as": "generator_unordered"}
    finally:
        sys.path.remove(str(ROOT))


@contextlib.contextmanager
def _ray(workers: Workers) -> Iterator[dict[str, Any]]:
    """The same on a Ray cluster.  Every node needs this repository at the same place, and the folder of
    results.
    """
    ray, own = import_ray(), False
    from ray.util.joblib import register_ray

    try:
        if not ray.is_initialized():
            settings = {"runtime_env": environment(), "log_to_driver": False}
            ray.init(address=workers.cluster, **settings)
            own = True
        register_ray()
        resources = {"num_gpus": workers.gpus} if workers.gpus else {"num_cpus": 1}
        count = workers.count or _room(ray.cluster_resources(), workers.gpus)
        with parallel_config(
            "ray", n_jobs=max(2, count), ray_remote_args=resources
        ):  # joblib runs a single job itself
            yield {"pre_dispatch": "all"}
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster answers at {workers.cluster!r}: {str(error).splitlines()[0]}"
        ) from None
    finally:
        if own:
            ray.shutdown()


def environment() -> dict[str, Any]:
    """Of a cluster's workers, which must find this repository."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {"env_vars": {"PYTHONPATH": path}}


def _room(resources: Mapping[str, float], gpus: float) -> int:
    """How many tasks a cluster holds at once."""
    return int(resources.get("GPU", 0) / gpus) if gpus else int(resources.get("CPU", 1))


def import_ray() -> Any:
    """Ray, which only --cluster needs.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError(
            "--cluster needs Ray, which is not installed here; pip install ray, or leave it out"
        ) from None
    return ray


def _lost(workers: Workers) -> tuple[type[BaseException], ...]:
    """What is raised when a worker dies."""
    return (BrokenProcessPool,) if workers.cluster is None else (import_ray().exceptions.RayActorError,)
