"""Metrics of generated text, as Meng et al. (2022, section 3.4 and appendix F) report them.

    fluency            entropy of the word bigrams and trigrams of what was generated, in bits,
                       weighted 2/3 and 4/3: low where an edited model repeats itself
    reference score    cosine of the TF-IDF vectors of what was generated and of texts about the
                       new target: high where the edited model writes as if the edit were true

Words are those of NLTK's tokenizer (Treebank, after Punkt's sentences), as in the published code.
NLTK's trained sentence model is a download; the untrained one used here differs at abbreviations
only.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""n of the n-grams -> weight; the mean over both is their entropy."""
WORD = re.compile(r"(?u)\b\w\w+\b")
"""What counts as a word of a TF-IDF vector: two letters or more."""


def check_tokenizer() -> None:
    """Refuse, before a run, to measure fluency without a tokenizer.

    Raises:
        ValueError: one sentence, naming the extra.
    """
    try:
        import nltk.tokenize  # noqa: F401
    except ImportError:
        raise ValueError(
            "--generations: expected NLTK, which splits texts into words, and it is not "
            "installed; do pip install 'kn_bench[generations]'"
        ) from None


def word_tokens(text: str) -> list[str]:
    """Return the words and punctuation of ``text``, sentence by sentence."""
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    words = NLTKWordTokenizer()
    return [
        word
        for sentence in PunktSentenceTokenizer().tokenize(text)
        for word in words.tokenize(sentence)
    ]


def n_gram_entropy(tokens: Sequence[str]) -> float:
    """Return the weighted mean entropy of the bigrams and trigrams of a text, in bits.

    A text too short for an n-gram has entropy 0 there.
    """
    return sum(weight * _entropy(tokens, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)


def _entropy(tokens: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    total = counts.total()
    return -sum(k / total * math.log2(k / total) for k in counts.values())


def fluency(texts: Sequence[str]) -> float:
    """Return the mean n-gram entropy of texts: the published ``ngram_entropy``."""
    return sum(n_gram_entropy(word_tokens(text)) for text in texts) / len(texts)


@dataclass(frozen=True)
class TfIdf:
    """Weights of words by how many texts they stand in.

    Attributes:
        vocabulary: word -> index.
        idf: weight of each word; a word of the vocabulary that no text has weighs the most.
    """

    vocabulary: Mapping[str, int]
    idf: Float[np.ndarray, " words"]

    @classmethod
    def of(cls, texts: Sequence[str]) -> TfIdf:
        """Return the weights over ``texts``: ln((1 + texts) / (1 + texts with the word)) + 1."""
        words = [set(WORD.findall(text.lower())) for text in texts]
        vocabulary = {word: i for i, word in enumerate(sorted(set[str]().union(*words)))}
        holding = Counter(word for each in words for word in each)
        counts = np.array([holding[word] for word in vocabulary], dtype=float)
        return cls(vocabulary, np.log((1 + len(texts)) / (1 + counts)) + 1)

    @classmethod
    def read(cls, vocabulary: Path, idf: Path) -> TfIdf:
        """Return published weights: a JSON object of words and indices, and a NumPy array.

        Raises:
            ValueError: for files that do not hold that, or do not fit each other.
        """
        try:
            words = json.loads(vocabulary.read_text(encoding="utf-8"))
            weights = np.load(idf, allow_pickle=False).astype(float)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{vocabulary.parent}: expected {vocabulary.name} and {idf.name} with the words "
                f"and weights of TF-IDF ({error}); remove both to weigh by the references"
            ) from None
        if not isinstance(words, dict) or sorted(words.values()) != list(range(len(weights))):
            raise ValueError(
                f"{vocabulary}: expected a word for each of the {weights.size} weights of "
                f"{idf.name}; take both files from one source"
            )
        return cls(words, weights)

    def vector(self, text: str) -> Float[np.ndarray, " words"]:
        """Return the counts of a text's words times their weights, of length 1; 0 if none."""
        counts = np.zeros(len(self.idf))
        for word in WORD.findall(text.lower()):
            if word in self.vocabulary:
                counts[self.vocabulary[word]] += 1
        weighted = counts * self.idf
        length = float(np.linalg.norm(weighted))
        return np.asarray(weighted / length if length else weighted)

    def reference_score(self, texts: Sequence[str], references: Sequence[str]) -> float | None:
        """Return the cosine between ``texts`` and ``references``, each joined to one text.

        None where either has no word of the vocabulary.
        """
        written, about = (self.vector(" ".join(parts)) for parts in (texts, references))
        if not written.any() or not about.any():
            return None
        return float(written @ about)
