"""What is learnt: a loss, its metrics and a prediction, behind one small contract."""
