"""The app's tabs, one file each: `build(page, place)` draws a tab inside the page's blocks and wires its handlers."""
