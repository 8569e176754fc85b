"""`python -m channelscope` is the command line."""

from channelscope.cli import main

main()
