"""``compare``: methods × tasks × budgets on the same questions, as tables and plots."""
