"""An extension of vLLM's worker that records the logits that its kernels compute.

vLLM returns at most a few log-probabilities a token as Python objects; whole distributions are
read where they arise. Loaded through vLLM's `worker_extension_cls`.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantize.compare.divergence import kl_kept

KEPT = 2048


class LogitsRecorder:
    """Methods that are added to vLLM's worker.

    The engine must hold one prompt at a time, unchunked.
    """

    model_runner: Any

    def recorder_begin(self, reference: str, *, write: bool) -> None:
        """Start. reference: .npz file to write (the baseline) or to compare with."""
        self._recorder = _Recorder(Path(reference), write=write)
        self._recorder.attach(self.model_runner.get_model())

    def recorder_expect(self, prompt_token_ids: list[int]) -> None:
        """Set the prompt that comes next."""
        self._recorder.expect(prompt_token_ids)

    def recorder_end(self) -> dict[str, list[float]]:
        """Stop and return kl, agrees and nll of each position, in order."""
        return self._recorder.finish()

    def chosen_kernels(self) -> dict[str, int]:
        """Return how many linear layers run on which kernel or method, by class name."""
        found: Counter[str] = Counter()
        for module in self.model_runner.get_model().modules():
            method = getattr(module, "quant_method", None)
            if method is None or not hasattr(module, "input_size"):
                continue
            scheme = getattr(module, "scheme", None)
            kernel = getattr(scheme, "kernel", None) or getattr(method, "kernel", None)
            found[type(kernel or scheme or method).__name__] += 1
        return dict(found)


class _Recorder:
    def __init__(self, reference: Path, *, write: bool) -> None:
        self._reference = reference
        self._write = write
        self._expected: list[int] = []
        self._kept_ids: list[np.ndarray] = []
        self._kept_logprobs: list[np.ndarray] = []
        self._series: dict[str, list[float]] = {"kl": [], "agrees": [], "nll": []}
        self._detach: Callable[[], None] = lambda: None
        if not write:
            with np.load(reference) as stored:
                self._ids, self._logprobs = stored["ids"], stored["logprobs"]

    def attach(self, model: Any) -> None:
        compute = model.compute_logits

        def recorded(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            logits: torch.Tensor = compute(hidden_states, *args, **kwargs)
            # The sampler computes the last position only, the prompt's log-probabilities all
            # positions before it.
            if self._expected and logits.shape[0] == len(self._expected) - 1:
                self._take(logits)
            return logits

        def detach() -> None:
            model.compute_logits = compute

        model.compute_logits = recorded
        self._detach = detach

    def expect(self, prompt_token_ids: list[int]) -> None:
        assert len(prompt_token_ids) > 2, "a prompt of two tokens looks like the sampler's call"
        assert not self._expected, "the last prompt's logits were not seen whole"
        self._expected = prompt_token_ids

    def finish(self) -> dict[str, list[float]]:
        self._detach()
        assert not self._expected, "the last prompt's logits were not seen whole"
        if self._write:
            np.savez(
                self._reference,
                ids=np.concatenate(self._kept_ids),
                logprobs=np.concatenate(self._kept_logprobs),
            )
        return self._series

    def _take(self, logits: torch.Tensor) -> None:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        following = torch.tensor(self._expected[1:], device=logits.device)
        self._expected = []
        nll = -logprobs.gather(1, following[:, None])[:, 0]
        best = logprobs.argmax(dim=-1)
        if self._write:
            values, ids = logprobs.topk(min(KEPT, logprobs.shape[-1]), dim=-1)
            self._kept_ids.append(ids.cpu().numpy().astype(np.int32))
            self._kept_logprobs.append(values.cpu().numpy())
            kl = np.zeros(len(nll))
            agrees = np.ones(len(nll), dtype=bool)
        else:
            start = len(self._series["nll"])
            ids = torch.from_numpy(self._ids[start : start + len(nll)]).to(logits.device).long()
            mine = logprobs.gather(1, ids).cpu().numpy().astype(np.float64)
            theirs = self._logprobs[start : start + len(nll)].astype(np.float64)
            kl = kl_kept(theirs, mine)
            # topk is sorted: the first is the baseline's most probable token.
            agrees = (best == ids[:, 0]).cpu().numpy()
        self._series["kl"] += kl.tolist()
        self._series["agrees"] += agrees.astype(float).tolist()
        self._series["nll"] += nll.cpu().double().tolist()
