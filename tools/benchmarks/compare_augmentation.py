"""Does training see a difference between augmentations? --help says how."""

from varcon_plugin.commands.noise import quiet_start

with quiet_start():
    from varcon_plugin.commands.benchmarks.augmentation import main

if __name__ == "__main__":
    main()
