"""How `mini` was trained: run ``python -m toprl_export.models.mini.pretrain`` to make its checkpoint again."""
