"""Old names of shipped config files: what is typed in their place, name first, then what is `--set` beside it.

They work until version 0.2, where this table and what reads it go.
"""

RENAMED = {
    "huginn_3_5b": ("huginn.py:3.5b",),
    "huginn_3_5b_tiny": ("huginn.py:tiny",),
    "looped_moe_1b": ("looped_moe.py:1b",),
    "looped_moe_1b_tiny": ("looped_moe.py:tiny",),
    "moeut_44m": ("moeut.py:44m",),
    "moeut_44m_tiny": ("moeut.py:tiny",),
    "ouro_1_4b": ("ouro.py:1.4b",),
    "ouro_1_4b_tiny": ("ouro.py:tiny",),
    "ouro_2_6b": ("ouro.py:2.6b",),
    "ouro_2_6b_tiny": ("ouro.py:tiny", "model.block_layers=4"),
    "parcae_140m": ("parcae.py:140m",),
    "parcae_140m_tiny": ("parcae.py:tiny",),
    "parcae_370m": ("parcae.py:370m",),
    "parcae_370m_tiny": (
        "parcae.py:tiny",
        "model.dim=96",
        "model.num_heads=3",
        "model.hidden_dim=384",
        "model.state_init.std=0.06454972243679027",
        "optim.learning_rate=0.004082482904638631",
        "optim.optimizer.adamw_rate=1.9595917942265424",
    ),
    "parcae_770m": ("parcae.py:770m",),
    "parcae_770m_tiny": (
        "parcae.py:tiny",
        "model.dim=48",
        "model.hidden_dim=192",
        "model.prelude_layers=4",
        "model.block_layers=4",
        "model.coda_layers=4",
        "model.state_init.std=0.09128709291752768",
        "optim.learning_rate=0.005773502691896258",
        "optim.optimizer.adamw_rate=1.3856406460551018",
    ),
    "parcae_1_3b": ("parcae.py:1.3b",),
    "parcae_1_3b_tiny": (
        "parcae.py:tiny",
        "model.prelude_layers=4",
        "model.block_layers=4",
        "model.coda_layers=4",
    ),
    "smelt_100m": ("smelt.py:100m",),
    "smelt_100m_tiny": ("smelt.py:tiny",),
}
