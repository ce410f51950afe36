"""The landmark model: data, geometry, model, training, evaluation, prediction, checkpoints."""
