"""Guards: rewards that take back what a text gains without being a better explanation.

Each is a reward of its own. Two are penalties, to be added, in `penalties`: `PromptCopyReward` and
`ContrastReward`. Two are verdicts, 1.0 or 0.0, best used as gates of a `CombinedReward`, in `verdicts`:
`LanguageReward` and `EndingReward`. The length and the repetition of a text are judged by `LengthReward` and
`RepetitionReward`, which serve as either.

What none of them cures: a text that says the opposite in nearly the reference's words. Its embedding is the
reference's own: the negated explanations of the example data have a mean cosine of 0.97, good ones 0.63.
"""

from fastreward.rewards.penalties import ContrastReward, PromptCopyReward
from fastreward.rewards.verdicts import EndingReward, LanguageReward

__all__ = ["ContrastReward", "EndingReward", "LanguageReward", "PromptCopyReward"]
