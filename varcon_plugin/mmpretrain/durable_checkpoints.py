"""mmengine's checkpoints, written so that no kill and no full disk costs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import get_file_backend, register_backend
from mmengine.fileio.backends import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from varcon_plugin.checkpoints.newest import Newest, newest
from varcon_plugin.checkpoints.shards import shard_folder
from varcon_plugin.checkpoints.writing import write_atomically

__all__ = ["AtomicLocalBackend", "DurableCheckpointHook", "checkpoints", "newest_of"]

INTERRUPTED = "interrupted_iter_{}.pth"


class AtomicLocalBackend(LocalBackend):
    """mmengine's file client of the local disk, whose files appear whole."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` at ``filepath``, all of it or nothing."""
        write_atomically(filepath, lambda file: file.write(obj))


register_backend("AtomicLocalBackend", AtomicLocalBackend)


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``; takes its arguments.

    Local files are written to a temporary file, synced and renamed. What
    ``max_keep_ckpts`` removes goes after the new file is there, not before, and so does
    the checkpoint of an interruption.
    """

    def before_train(self, runner: Runner) -> None:
        """Find out where the files go."""
        super().before_train(runner)
        local = isinstance(get_file_backend(self.out_dir), LocalBackend)
        own = self.file_client_args or self.backend_args  # type: ignore[has-type]
        if local and not own:
            self.backend_args = {"backend": AtomicLocalBackend.__name__}

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict[str, Any]
    ) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            while len(self.keep_ckpt_ids) >= self.max_keep_ckpts:
                outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
        super()._save_checkpoint_with_step(runner, step, meta)
        if not is_main_process():
            return
        if "backend" in (self.backend_args or {}):
            interrupted = Path(self.out_dir).glob(INTERRUPTED.format("*"))
            outdated += [path.name for path in interrupted]
        # a spread bank lies beside its file
        outdated += [shard_folder(name).name for name in outdated]
        for name in outdated:
            path = self.file_backend.join_path(self.out_dir, name)
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # of DeepSpeed
                self.file_backend.rmtree(path)

    def save_interrupted(self, runner: Runner, meta: dict[str, Any]) -> str:
        """Save between two regular checkpoints; returns the path.

        Args:
            runner: at the end of a step, which it does not count yet.
            meta: for the checkpoint.
        """
        name = INTERRUPTED.format(runner.iter + 1)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=True,
            save_param_scheduler=True,
            meta={"epoch": runner.epoch, "iter": runner.iter + 1, **meta},
            by_epoch=False,
            backend_args=self.backend_args,
        )
        if is_main_process():  # for whoever reads mmengine's pointer
            pointer = Path(runner.work_dir, "last_checkpoint")
            text = str(self.last_ckpt).encode()
            write_atomically(pointer, lambda file: file.write(text))
        return str(self.last_ckpt)


def checkpoints(cfg: Config) -> list[Path]:
    """Local files that a run of ``cfg`` may have written to go on from."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    out = hook.get("out_dir")
    folder = Path(out, Path(cfg.work_dir).name) if out else Path(cfg.work_dir)
    return sorted(path for path in folder.glob("*.pth") if path.is_file())


def newest_of(cfg: Config) -> Newest:
    """The checkpoint that ``--resume`` goes on from."""
    return newest(checkpoints(cfg))
