"""Pages to look at: one template, one stylesheet and one kind of chart for all that both packages show.

A page stands alone: no script, no font, no picture from elsewhere. Everything that is put into a template is escaped.
"""
