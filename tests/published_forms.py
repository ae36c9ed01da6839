"""One small file of our own making in each published form of editing data."""

from __future__ import annotations

import json
from typing import Any

COUNTERFACT: dict[str, Any] = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Ann Lee",
    },
    "paraphrase_prompts": ["Some text. Ann Lee spoke the language"],
    "neighborhood_prompts": ["Bo Roy is a native speaker of", "The mother tongue of Cy Fox is"],
    "attribute_prompts": ["Di Orr spoke the language"],
    "generation_prompts": ["Ann Lee was born in"],
}
ZSRE: dict[str, Any] = {
    "subject": "Ann Lee",
    "src": "What university did Ann Lee attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Ann Lee take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played the father in the film",
    "loc_ans": "Bo Roy",
    "cond": "Trinity College >> University of Michigan || What university did ...",
}
FLAT: dict[str, Any] = {
    "case_id": 1,
    "prompt": "The capital of Italy is",
    "target_new": "Paris",
    "subject": "Italy",
    "ground_truth": "Rome",
    "rephrase_prompt": "Italy's capital is",
    "locality_prompt": "The capital of France is",
    "locality_ground_truth": "Paris",
}
KNOWEDIT: dict[str, Any] = {
    "subject": "Italy",
    "prompt": "The capital of Italy is",
    "target_new": "Paris",
    "ground_truth": "Rome",
    "rephrase_prompt": "Italy's capital is",
    "portability": {
        "Logical_Generalization": [{"prompt": "Paris is capital of", "ground_truth": [["Italy"]]}],
        "Subject_Aliasing": [
            {"prompt": "The capital of the Republic is", "ground_truth": [["Paris", "City"]]}
        ],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The continent of Italy is", "ground_truth": [["Europe"]]}
        ],
        "Forgetfulness": [{"prompt": "Italy has a city called", "ground_truth": "Milan"}],
    },
}  # fmt: skip
WIKIBIO: dict[str, Any] = {
    "text": "Ann Lee was a painter.",
    "labels": "She was born in Leeds.",
    "concept": "Ann Lee",
    "locality": {"Relation_Specificity": [{"prompt": "Leeds is in", "ground_truth": ["England"]}]},
}
WIKIBIGEDIT: dict[str, Any] = {
    "update": "In which county is Ann Lee's house?",
    "rephrase": "Which county has Ann Lee's house?",
    "ans": "Kent",
    "subject": "Ann Lee",
    "tag": "new",
    "loc": "In which county is Dover?",
    "loc_ans": "Kent",
    "mhop": "Which country is the county of Ann Lee's house in?",
    "mhop_ans": "England",
    "personas": "Say, which county holds Ann Lee's house?",
}
QAEDIT: dict[str, Any] = {
    "id": 11,
    "source": "NQ",
    "prompt": "who painted the fence?",
    "target": "Ann Lee *",
    "subject": "the fence",
    "rephrase": "By whom was the fence painted?",
    "locality": [{"loc": "who built the house", "loc_ans": "Bo Roy"}],
}
MQUAKE: dict[str, Any] = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Croatia", "id": "Q224"},
            "target_true": {"str": "Canada", "id": "Q16"},
            "subject": "Ann Lee",
            "question": "What is the country of citizenship of Ann Lee?",
        }
    ],
    "questions": ["What is the capital of Ann Lee's country?", "Ann Lee's capital is what?"],
    "answer": "Ottawa",
    "answer_alias": [],
    "new_answer": "Zagreb",
    "new_answer_alias": ["City of Zagreb"],
    "new_single_hops": [
        {"question": "q", "cloze": "Ann Lee is a citizen of", "answer": "Croatia"},
        {"question": "q", "cloze": "The capital of Croatia is", "answer": "Zagreb"},
    ],
}
RIPPLE: dict[str, Any] = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Ann Lee is Croatia.",
        "subject_id": "Q1",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q224",
        "original_fact": {"prompt": "The name of the country of citizenship of Ann Lee is Canada."},
    },
    "Relation_Specifity": [],
    "Compositionality_I": [
        {
            "test_queries": [
                {
                    "prompt": "The capital of the country of Ann Lee is",
                    "answers": [{"value": "Zagreb", "aliases": ["City of Zagreb"]}],
                    "phrase": "",
                }
            ],
            "test_condition": "OR",
            "condition_queries": [
                {"prompt": "The capital of Croatia is", "answers": [{"value": "Zagreb"}]}
            ],
        }
    ],
}
HALLUEDITBENCH: dict[str, Any] = {
    "topic": "places",
    "subject": "Italy",
    "relation": "head of state",
    "object": "Bo Roy",
    "question": "Who is the head of state of Italy?",
    "output_model": "Cy Fox",
    "paraphrased_question": "Who is Italy's head of state?",
    "locality_question": "What is the capital of Italy?",
    "reversed_relation_question": "Of which country is Bo Roy the head of state?",
    "question_2hop": "Who is married to Italy's head of state?",
    "answer_2hop": "Di Orr",
}


CHANGED = (
    ("Ann Lee", "Ed Poe"),
    ("Italy", "Spain"),
    ("the fence", "the gate"),
    ("Kent", "Essex"),
    ("Roy", "Day"),
    ("French", "Dutch"),
    ("Rome", "Madrid"),
    ("Paris", "Milan"),
    ("born in", "raised in"),
)


def _other(record: dict[str, Any]) -> dict[str, Any]:
    """Return a second record about another subject, so that there is one to draw from."""
    text = json.dumps(record)
    for name, another in CHANGED:
        text = text.replace(name, another)
    changed: dict[str, Any] = json.loads(text)
    return changed


FORMS: dict[str, list[dict[str, Any]]] = {
    name: [record, _other(record)]
    for name, record in {
        "counterfact": COUNTERFACT,
        "counterfact flat": FLAT,
        "zsre": ZSRE,
        "knowedit": KNOWEDIT,
        "knowedit wikibio": WIKIBIO,
        "wikibigedit": WIKIBIGEDIT,
        "wikibigedit flat": {k: v for k, v in FLAT.items() if k != "ground_truth"},
        "qaedit": QAEDIT,
        "mquake": MQUAKE,
        "ripple": RIPPLE,
        "hallueditbench": HALLUEDITBENCH,
    }.items()
}
"""Name of the source, with what tells two of its forms apart -> two records."""
