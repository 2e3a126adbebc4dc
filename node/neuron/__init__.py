"""The learning peer: the paper's "Running the network", steps 1 to 7, in torch.

`corpus` holds the data, `model` the modules, `score` what each peer's answers were worth, `neuron`
the learner that owns them, `loop` the trio task that asks peers, learns and reports, and `serving`
what others see of it. Everything but `corpus` imports torch.
"""
