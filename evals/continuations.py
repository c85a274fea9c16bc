"""Runs the requests of lm-eval's public tasks in the engine's process.

Module-level functions that take the vllm.LLM first, for `OfflineEngine.call`.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def score_continuations(llm: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Return log-likelihood (nats) and greediness of each continuation after its context.

    pairs: (context, continuation). Tokenized as in lm-eval: the continuation's tokens are those of
    the whole text after the tokens of the context. If both do not fit the window, the start of the
    context is cut.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    tokenizer = llm.get_tokenizer()
    window = llm.llm_engine.model_config.max_model_len - 1
    prompts, lengths = [], []
    for context, continuation in pairs:
        # White space before the continuation belongs to its first token.
        kept = context.rstrip()
        whole = tokenizer.encode(kept + context[len(kept) :] + continuation)
        start = tokenizer.encode(kept) if kept else [tokenizer.eos_token_id]
        ids = (whole if kept else [*start, *whole])[-window:]
        prompts.append(TokensPrompt(prompt_token_ids=ids))
        lengths.append(min(len(whole) - (len(start) if kept else 0), len(ids) - 1))
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [_scored(output, length) for output, length in zip(outputs, lengths, strict=True)]


def _scored(output: Any, length: int) -> tuple[float, bool]:
    ids = output.prompt_token_ids[-length:]
    steps = output.prompt_logprobs[-length:]
    chosen = [step[token] for step, token in zip(steps, ids, strict=True)]
    return sum(item.logprob for item in chosen), all(item.rank == 1 for item in chosen)


def continue_text(llm: Any, pairs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return greedy continuations. pairs: (context, lm-eval's generation arguments)."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    tokenizer = llm.get_tokenizer()
    window = llm.llm_engine.model_config.max_model_len
    prompts, params = [], []
    for context, options in pairs:
        until = options.get("until") or []
        stop = [until] if isinstance(until, str) else list(until)
        bound = int(options.get("max_gen_toks", 256))
        ids = tokenizer.encode(context)[-(window - bound) :]
        prompts.append(TokensPrompt(prompt_token_ids=ids))
        params.append(SamplingParams(max_tokens=bound, temperature=0.0, stop=stop))
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [output.outputs[0].text for output in outputs]
