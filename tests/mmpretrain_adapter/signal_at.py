"""What a test config imports: a signal in the middle of a training."""

import os
import signal
import time

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from varcon_plugin.mmpretrain import StopHook


@HOOKS.register_module(force=True)
class SignalAt(Hook):
    """Sends a signal to this process, or to its launcher, within a step."""

    def __init__(self, step, number=signal.SIGUSR1, launcher=False):
        self.step, self.number, self.launcher = step, number, launcher

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 != self.step:
            return
        if not self.launcher:
            os.kill(os.getpid(), self.number)
            return
        if runner.rank == 0:
            os.kill(os.getppid(), self.number)
        (hook,) = (h for h in runner.hooks if isinstance(h, StopHook))
        while not hook.signals.received():
            time.sleep(0.02)
