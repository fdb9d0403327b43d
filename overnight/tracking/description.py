"""The description of an MLflow run: a paragraph for each thing that happened to it, of all its attempts and of whoever closed it."""

TAG = "mlflow.note.content"
MOST = 6000  # characters; MLflow takes 8000
FIRST = 1500  # of which the first ones stay
GAP = "(...)"


def added(before: str, text: str) -> str:
    """The description with one more paragraph; the same words twice, as after a repeated request, stand there once."""
    paragraphs = [part for part in before.split("\n\n") if part]
    text = text.strip()
    if not text or text in paragraphs:
        return before
    whole = "\n\n".join([*paragraphs, text])
    if len(whole) <= MOST:
        return whole
    tail = whole[-(MOST - FIRST - len(GAP) - 4) :]
    return f"{whole[:FIRST].rsplit(' ', 1)[0]}\n\n{GAP}\n\n{tail}"
