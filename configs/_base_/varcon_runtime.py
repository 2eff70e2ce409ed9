"""What every VarCon recipe shares: the registration and how its terms are logged."""

custom_imports = dict(imports=["varcon_plugin.mmpretrain"])

# loss is logged as a mean over 10 iterations; its terms too, so that they add up
log_processor = dict(
    custom_cfg=[
        dict(data_src=term, method_name="mean", window_size=10)
        for term in ("kl", "nll", "tau2", "confidence")
    ]
)
