"""What validate, compare and analyze share: answers, cells, estimates, figures, kept tokens, the machine."""
