"""What `make chaos` does to the project.

An attack is a generator with the decorator `registry.attack`, in a module that
`varcon_plugin.commands.chaos` imports. It works in a folder of its own and yields a
`registry.Trial` for each thing that it tried.
"""
