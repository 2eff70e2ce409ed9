"""Draw the views that a model sees; --help says how."""

from varcon_plugin.commands.noise import quiet_start

with quiet_start():
    from varcon_plugin.commands.browse import main

if __name__ == "__main__":
    main()
