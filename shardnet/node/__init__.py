"""The daemon that keeps shards and runs them.

`daemon` composes the wings: `shards` decides, `performing` carries its effects out, `tasks` runs steps, `weights` brings and gives files, `links`
reaches others. `sharing` and `publishing` are daemons that give and take weights and run nothing. Begin with `daemon`.
"""
