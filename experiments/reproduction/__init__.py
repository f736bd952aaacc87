"""Tables and figures of the paper, each made by one command: `autoexplore reproduce`."""
