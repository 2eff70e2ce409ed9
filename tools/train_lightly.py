"""Train VarCon with lightly; --help says how."""

from varcon_plugin.commands.train_lightly import main

if __name__ == "__main__":
    main()
