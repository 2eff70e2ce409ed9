"""Test a model: mmpretrain's tools/test.py and its flags, on GPUs or on the CPU.

python tools/test.py CONFIG CHECKPOINT [flags]  (--help lists them; --check only checks)
"""

from varcon_plugin.commands.noise import quiet_start

with quiet_start():
    from varcon_plugin.mmpretrain.launch import main

if __name__ == "__main__":
    main("test")
