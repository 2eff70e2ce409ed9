"""Train VarCon on handwritten digits and judge what it learned."""

from varcon_plugin.commands.noise import quiet_start

with quiet_start():
    from varcon_plugin.commands.quickstart import main

if __name__ == "__main__":
    main()
