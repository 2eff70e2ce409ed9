"""Images a second of training and where the time goes; --help says how."""

from varcon_plugin.commands.noise import quiet_start

with quiet_start():
    from varcon_plugin.commands.benchmarks.train import main

if __name__ == "__main__":
    main()
