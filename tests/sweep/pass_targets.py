"""Quantizers for the tests of passes: real ones, of which some kill whoever makes them."""

import os
import signal
from dataclasses import dataclass

from qsweep.base.errors import TrialFailed
from qsweep.quantizers.native import NativeGPTQ


@dataclass(frozen=True)
class Poisoned(NativeGPTQ):
    """The native GPTQ, whose 2-bit configurations end their process and whose 3-bit ones raise."""

    def quantize_together(self, model, calibration, configurations, *rest, **options):
        """Die, or do as usual."""
        self._die([quantizer.bits for quantizer, _ in configurations])
        return super().quantize_together(model, calibration, configurations, *rest, **options)

    def quantize(self, model, calibration, out, progress=None):
        """Die, or do as usual."""
        self._die([self.bits])
        return super().quantize(model, calibration, out, progress)

    @staticmethod
    def _die(bits):
        if 2 in bits:
            os.kill(os.getpid(), signal.SIGKILL)
        if 3 in bits:
            raise TrialFailed("model.layers.0.mlp.up_proj: its inputs are not finite")
