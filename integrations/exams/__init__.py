"""Exam questions by seed, in English and Italian, with worked explanations: a world to train a policy in.

Eleven families: dilutions, molarity, crosses, blood groups, base pairing, kinematics, units, sequences,
percentages, probability and syllogisms. In some the answer follows from a rule on symbols, in others it is
calculated. A family has several tasks. A task has several wordings of the question, one of which training
never sees, and three of the worked explanation. Wrong options are what typical mistakes lead to.

`questions` draws questions for one of three splits, `corpus` writes texts for continued pre-training, and
`write_jsonl` puts both into files.
"""

from fastreward.integrations.exams.corpus import corpus
from fastreward.integrations.exams.files import write_jsonl
from fastreward.integrations.exams.generate import FAMILIES, LANGUAGES, SPLITS, Split, questions
from fastreward.integrations.exams.question import Question

__all__ = ["FAMILIES", "LANGUAGES", "SPLITS", "Question", "Split", "corpus", "questions", "write_jsonl"]
