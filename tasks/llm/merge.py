"""Put the adapter of a tuned model into its base, and write it for llama.cpp and Ollama."""

from overnight import Artifact, Run, step
from tasks.llm.tune_params import MergeParams

__all__ = ["MergeParams", "merge_llm"]


@step
def merge_llm(run: Run, params: MergeParams, model: Artifact, chats: Artifact) -> Artifact:
    """Merge a tuned model into its base in the base's own 16 or 32 bits, and write it out; on the processor.

    In: artifacts "model" and "chats" of the flow tune. Out: artifact "merged" with transformers/ (tokenizer,
    safetensors, template), a GGUF of each format, and a Modelfile for Ollama. Logs adapter/loss, merged/loss
    and as_tuned/loss (on the base of few bits), and of each GGUF drift/FORMAT: by how many nats the log
    probabilities of likely tokens differ at most at the beginning of an answer, asked of llama.cpp;
    drift_within/FORMAT: within it. Raises DataError: another base, a type of model or of tokenizer that is
    not known to be the same in llama.cpp; OvernightError: what was merged or written answers otherwise.
    """
    from tasks.llm import merging

    return merging.merge(run, params, model, chats)
