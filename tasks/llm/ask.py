"""Ask a language model on this machine: by transformers in as few bits as fit, or by llama.cpp."""

from overnight import Artifact, Run, step
from overnight.data.pretrained import Pretrained
from overnight.memory.formulas import Formula
from tasks.llm.ask_params import CompareParams, ModelParams
from tasks.llm.endpoint import QuestionParams

__all__ = ["CompareParams", "ModelParams", "ask_model", "compare_quants"]


def ask_peak(params: ModelParams, asked: QuestionParams, weights: Pretrained) -> Formula:
    """Of the weights, a cache and a pass for `parallel` prompts at once; refused where one does not fit."""
    from tasks.llm import ask_memory

    if params.engine == "llama_cpp":
        return ask_memory.on_the_processor(weights, params.context, asked.parallel)
    return ask_memory.answering(weights, params.quant, params.context, asked.parallel)


def compare_peak(params: CompareParams, weights: Pretrained) -> Formula:
    """Of the largest, since one is held at a time."""
    from tasks.llm import ask_memory

    return ask_memory.comparing(weights, params.quants, min(params.window, params.tokens))


@step(gpu=True, peak=ask_peak, vram_mib=8192)
def ask_model(run: Run, params: ModelParams, asked: QuestionParams, weights: Pretrained) -> Artifact:
    """Answer prompts in batches of `parallel`, padded on the left.

    Out: artifact "answers", as of ask_endpoint; the seconds of a prompt count from the beginning of its
    batch. Logs also prompt_tokens_per_s (until the first token), answer_tokens_per_s (from there on), load_s
    and weights_mib; of llama.cpp, server_peak_mib instead of the last. Raises DataError: weights that cannot
    be loaded or have no template, prompts longer than the context (named); DoesNotFit: not one prompt fits
    the card.
    """
    if params.engine == "llama_cpp":
        from tasks.llm import ask_server

        return ask_server.answer(run, params.context, asked, weights)
    from tasks.llm import asking

    return asking.answer(run, params, asked, weights)


@step(gpu=True, peak=compare_peak, vram_mib=8192)
def compare_quants(run: Run, params: CompareParams, weights: Pretrained) -> None:
    """Measure what each way of keeping the weights costs in quality, and saves in memory.

    Logs loss/QUANT (nats a token of the text), loss_added/QUANT (above the first of them), weights_mib/QUANT
    and tokens_per_s/QUANT; a table, quants.md, and a picture. Raises DataError: a text that cannot be read or
    has fewer than two tokens.
    """
    from tasks.llm import quants

    quants.compare(run, params, weights)
