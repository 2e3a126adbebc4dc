"""The learning peer: the paper's "Running the network", steps 1 to 7, in torch.

`corpus` holds the data, `model` the modules, `score` what each peer's answers were worth,
`neuron` the learner that owns them, and `loop` the trio task that asks peers, learns and reports.
Importing this package imports torch.
"""

from .corpus import Corpus, load_corpus
from .loop import TrainingReport, train
from .neuron import Lesson, Neuron

__all__ = ["Corpus", "Lesson", "Neuron", "TrainingReport", "load_corpus", "train"]
