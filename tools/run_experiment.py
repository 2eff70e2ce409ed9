"""Run an experiment of the paper; --help says how."""

from varcon_plugin.commands.noise import quiet_start

with quiet_start():
    from varcon_plugin.commands.experiment import main

if __name__ == "__main__":
    main()
