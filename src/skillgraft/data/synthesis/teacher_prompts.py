"""Teacher prompts of self-distillation: the document or answer that the student does not see. Loads no torch.

The example of an answer is introduced and then asked to be said in own words, so that the teacher understands rather
than repeats it (SDFT, arXiv 2601.19897, section 3). The words are our own; changing them raises the versions of the
stage kinds `distill` and `mix`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skillgraft.data.documents import Document
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError


def with_context(question: Question, document: Document | None, sees: str) -> str:
    """Return the question as the teacher reads it: below its document, above its gold answer, or between both."""
    passage = example = ""
    if sees != "answer" and document is not None:
        about = f" about {document.title}" if document.title else ""
        passage = f"Here is a text{about}:\n\n{document.text}\n\n"
    if sees != "document":
        example = (
            f"\n\nThis is an example of a right answer to the question:\n{question.answers[0]}\n\n"
            "Now give an answer of your own."
        )
    return f"{passage}{question.question}{example}"


def by_document(
    questions: Sequence[Question], documents: Sequence[Document], sees: str
) -> list[tuple[Question, Document | None]]:
    """Return each question with the document that it is about; None where the teacher sees none.

    Raises:
        DataError: no questions, or one about a document that is not there.
    """
    if not questions:
        raise DataError("there is no question to ask; write some with a synthesize stage, or let the teacher retell")
    known: Mapping[str, Document] = {document.id: document for document in documents}
    for question in questions:
        if sees != "answer" and question.document not in known:
            raise DataError(
                f"a question is about the document '{question.document}', which is not among the {len(known)} given"
            )
    return [(question, known.get(question.document)) for question in questions]


def tell_about(document: Document) -> str:
    """Return the request to tell what a document is about, by its title alone; `DataError` where it has none."""
    if not document.title:
        raise DataError(f"the document '{document.id}' has no title to be asked about; give it one, or give questions")
    return f"What do you know about {document.title}? Tell it in a few sentences."
