"""Train a model: mmpretrain's tools/train.py and its flags, on GPUs or on the CPU.

python tools/train.py CONFIG [flags]  (--help lists them; --check only checks)
"""

from varcon_plugin.commands.noise import quiet_start

with quiet_start():
    from varcon_plugin.mmpretrain.launch import main

if __name__ == "__main__":
    main("train")
