"""The one user_script of every workflow: importing it plugs this workspace into Olive. It defines nothing."""

import passes.registration

passes.registration.register()
