"""Which of the paper's corpora a study runs on. A claim is judged on the corpus it was made on, or not at all."""

from collections.abc import Sequence

from experiments.engine.variants import Paper, Study
from freezejax.errors import UserError

# `freezejax.data.Corpus.fingerprint` (both token files and the tokenizer) -> the corpus as the paper names it.
# A sample counts as its corpus, with either of the paper's tokenizers: its claims are of the corpus, not of one part.
CORPORA = {
    # Project Gutenberg 11, 84, 1342 and 1661 as distributed, as bytes, the last tenth of each for validation.
    "ffaefeba6a9d4478972b6b8c140815b1c4b9433279420af67e11013373cfffc6": "gutenberg",
    # 200 training documents of FineWeb, and the first 65,536 tokens of the challenge's sp1024 validation split.
    "519e3b3e30640e08875236d6f814b980912ed4b650236422688ea081a41857b7": "fineweb",  # sp1024
    "fcdc44af4d524884f4165f62ade2f628b7313b5a00dd2e83d2efb6eaf1fa092b": "fineweb",  # sp4096
}


def paper_corpus(study: Study, wanted: str, fingerprint: str) -> str:
    """The corpus whose figures of the paper stand beside a study's; "" = none.

    `wanted` is `config.paper`: a corpus, by the word of whoever runs the study; "none"; or "auto": by fingerprint.

    Raises:
      UserError: a corpus of which the paper reports nothing in this study.

    >>> paper_corpus(Study("s", []), "auto", "0" * 64)
    ''
    """
    papers = [*(v.papers for v in study.variants), *(c.papers for c in study.contrasts)]
    known = sorted({paper.corpus for of_item in papers for paper in of_item})
    if wanted not in ("auto", "none", *known):
        raise UserError(f"config.paper={wanted!r}: expected {', '.join(('auto', *known))} or none")
    found = CORPORA.get(fingerprint, "") if wanted == "auto" else wanted
    return found if found in known else ""


def paper_of(papers: Sequence[Paper], corpus: str) -> Paper | None:
    """The paper's figure on a corpus, if it has one.

    >>> paper_of([Paper("fineweb", "section 3", 4.1, -0.9, "-0.9%")], "fineweb").delta_pct
    -0.9
    """
    return next((paper for paper in papers if paper.corpus == corpus), None)
